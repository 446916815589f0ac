"""What `dcgan.py` is built of: layers, convolutions, augmentation, random numbers, sessions, replicas."""
