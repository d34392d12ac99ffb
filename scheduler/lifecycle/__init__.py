"""The life of a job: asked for, tried, reported, ended; its states change here alone."""
