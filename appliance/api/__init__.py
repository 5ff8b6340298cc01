"""The HTTP surface: validate, make one call, encode. No decisions are taken here."""
