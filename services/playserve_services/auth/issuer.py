"""The settings of whoever takes JSON Web Tokens, and the authenticator that they make."""

from __future__ import annotations

from pydantic import BaseModel, Field, model_validator

from playserve_services.auth.tokens import Jwts, TokenRules, jwks_at
from playserve_services.validation import check_together

__all__ = ["IssuerSettings"]


class IssuerSettings(BaseModel):
    """Whose tokens are taken. The settings of a service inherit from it."""

    jwt_issuer: str = ""
    """Issuer whose JSON Web Tokens are taken; empty: none. With jwt_audience and jwt_jwks."""
    jwt_audience: str = ""
    """Audience that a token must name."""
    jwt_jwks: str = ""
    """The issuer's public keys: a file, or a URL (https, or http to loopback)."""
    jwt_leeway_s: float = Field(10.0, ge=0, le=25)
    """How far the issuer's clock may be off. What runs ends so much later than its token, and within 30 s."""

    @model_validator(mode="after")
    def _issuer_is_whole(self) -> IssuerSettings:
        check_together(self, "jwt_issuer", "jwt_audience", "jwt_jwks")
        return self

    def tokens(self) -> Jwts | None:
        """Return what authenticates by tokens; None: there is no issuer.

        Raises:
            BadSettingError: The file of the issuer's keys is none, or their URL may not be asked.
        """
        if not self.jwt_issuer:
            return None
        rules = TokenRules(issuer=self.jwt_issuer, audience=self.jwt_audience, leeway_s=self.jwt_leeway_s)
        return Jwts(rules, jwks_at(self.jwt_jwks))
