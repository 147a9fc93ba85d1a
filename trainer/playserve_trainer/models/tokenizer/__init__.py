"""The tokenizers: policies that turn a frame into K tokens, and K tokens into a frame."""

from playserve_trainer.models.tokenizer.base import Tokenizer
from playserve_trainer.models.tokenizer.config import TokenizerConfig
from playserve_trainer.models.tokenizer.nethack import NetHackTokenizer, NetHackTokenizerConfig
from playserve_trainer.models.tokenizer.vqvae import VQTokenizer

__all__ = ["NetHackTokenizer", "NetHackTokenizerConfig", "Tokenizer", "TokenizerConfig", "VQTokenizer"]
