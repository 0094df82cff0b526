"""What fits a card, and the time that there is."""
