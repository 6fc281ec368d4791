"""What is computed for an answer: which variant to ship, the front, what changed, what holds over seeds, a card."""
