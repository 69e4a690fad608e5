"""What the image towers of the pocket families are trained for: one file an objective.

Each has `loss(model, batch)`: the mean over a batch's images, with gradients to the image tower and
to what else the objective needs. The text tower is frozen in all of them.
"""
