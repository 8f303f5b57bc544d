"""What only train.py needs: data, losses, augmentation, metrics, checkpoints, publishing."""
