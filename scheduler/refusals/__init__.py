"""What cannot work, refused at submit with its reason: not after an hour on a worker.

``facts`` says what is known of a job's inputs, ``looking`` finds it out, and ``training``,
``measuring`` and ``making`` hold a function a rule. What is not known refuses nothing: the engine
looks again before it begins.
"""
