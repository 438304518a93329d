"""Knowledge distillation without the data: DeepInversion and Adaptive DeepInversion."""
