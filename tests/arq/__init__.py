"""arq's own tests, run with our Worker, client and Job in the place of arq's."""
