"""Plan, set up and run the phases of a recipe: prune, quantize, distil, fine-tune."""
