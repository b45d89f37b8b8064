"""Train many recipes, and carry a study from data to the chosen model."""
