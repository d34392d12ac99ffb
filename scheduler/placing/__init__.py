"""Which job goes to which worker: who there is, what they hold, what a job needs."""
