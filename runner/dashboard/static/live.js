// Keeps the part of a page that changes up to date, by server-sent events. Everything else works
// without it.
"use strict";

(() => {
  const live = document.querySelector("[data-live]");
  const pulse = document.querySelector("[data-pulse]");
  const trouble = document.querySelector("[data-trouble]");

  const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);

  // Is a person in the middle of something in there that must not be taken away?
  const isHeld = (node) =>
    node === document.activeElement && /^(INPUT|SELECT|TEXTAREA)$/.test(node.nodeName);

  const syncAttributes = (old, fresh) => {
    for (const { name } of [...old.attributes]) {
      // What a person has opened stays open.
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (name === "open" && old.nodeName === "DETAILS") continue;
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
  };

  const morphChildren = (old, fresh) => {
    const keyed = new Map();
    for (const child of old.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
    let place = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      const key = keyOf(wanted);
      let found = key ? keyed.get(key) : null;
      if (!found && !key && place && !keyOf(place)) found = place;
      if (!found || found.nodeName !== wanted.nodeName) {
        old.insertBefore(wanted, place);
        continue;
      }
      if (key) keyed.delete(key);
      if (found !== place) old.insertBefore(found, place);
      else place = place.nextSibling;
      morph(found, wanted);
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  };

  const morph = (old, fresh) => {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    if (isHeld(old) || old.isEqualNode(fresh)) return;
    syncAttributes(old, fresh);
    morphChildren(old, fresh);
  };

  const isSelecting = () => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  };

  // Not by its colour alone: whoever reads old figures has to know.
  const beats = (is) => {
    const word = is ? "live" : "not live";
    pulse.hidden = false;
    pulse.classList.toggle("off", !is);
    pulse.lastElementChild.textContent = pulse.title = word;
    pulse.setAttribute("aria-label", word);
  };

  const warn = (text) => {
    beats(false);
    trouble.textContent = text;
    trouble.hidden = false;
  };

  const AGAIN_MS = 15000;
  let source = null;

  const open = () => {
    if (!live || source || document.hidden) return;
    source = new EventSource(location.href);
    source.addEventListener("page", (event) => {
      trouble.hidden = true;
      beats(true);
      if (isSelecting()) return;
      const fresh = document.createElement("div");
      fresh.innerHTML = event.data;  // made by our templates, which escape everything
      morphChildren(live, fresh);
    });
    source.addEventListener("trouble", (event) => warn(event.data));
    source.onerror = () => {
      beats(false);
      if (source.readyState !== EventSource.CLOSED) return;  // it tries again by itself
      warn("These figures do not move any more. Load the page again; perhaps you are signed out.");
      close();
      setTimeout(open, AGAIN_MS);
    };
  };

  const close = () => {
    if (source) source.close();
    source = null;
  };

  // Where the menu is a row that scrolls, the place where one is shall be in sight.
  for (const here of document.querySelectorAll("nav [aria-current]")) {
    const row = here.closest("nav");
    row.scrollLeft += here.getBoundingClientRect().left - row.getBoundingClientRect().left - 60;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-confirm]");
    if (button && !window.confirm(button.dataset.confirm)) event.preventDefault();
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submits]") && event.target.form.method === "get") event.target.form.submit();
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.nodeName);
    if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
      const field = document.querySelector('.find input, .filters input[type="search"]');
      if (field) { event.preventDefault(); field.focus(); }
    }
  });
})();
