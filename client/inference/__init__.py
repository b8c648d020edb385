"""Local use of a released model: predict, evaluate, explain, personalise, export."""
