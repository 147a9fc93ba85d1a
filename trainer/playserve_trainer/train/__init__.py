"""The one training loop of every family: see :class:`playserve_trainer.train.loop.Trainer`."""
