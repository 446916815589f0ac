"""Several processes that train as one: who they are, what they send one another, and how they start on one machine."""
