"""The families on one GPT-2 style transformer over tokens: characters, agents and worlds."""

from playserve_trainer.models.gpt.agents import CnnAgent, CnnAgentConfig, TokenAgent, TokenAgentConfig
from playserve_trainer.models.gpt.char import CharConfig, CharPolicy
from playserve_trainer.models.gpt.world import WorldPolicy
from playserve_trainer.models.gpt.world_config import WorldConfig

__all__ = ["CharConfig", "CharPolicy", "CnnAgent", "CnnAgentConfig", "TokenAgent", "TokenAgentConfig", "WorldConfig",
           "WorldPolicy"]  # fmt: skip
