"""The dataset of NetHack games on disk: :class:`ShardWriter` makes it, :class:`TtyDataset` reads it."""

from playserve_client.nethack.shard_format import GameMeta
from playserve_client.nethack.shard_writer import Recovery, ShardWriter, recover_shards
from playserve_client.nethack.tty_dataset import NO_KEY, ShardDamagedError, TtyBatch, TtyDataset

__all__ = [
    "NO_KEY", "GameMeta", "Recovery", "ShardDamagedError", "ShardWriter", "TtyBatch", "TtyDataset", "recover_shards",
]  # fmt: skip
