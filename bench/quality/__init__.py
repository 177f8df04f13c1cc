"""How good the models are: accuracies and rounds beside the published ones."""
