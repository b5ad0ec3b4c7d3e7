"""Our themes: dark, light and one of high contrast.

Colour is never the only carrier of meaning: every state also has a word or a glyph.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="awq-dark",
    primary="#4fb3bf",
    secondary="#8aa4c8",
    accent="#f0b35a",
    success="#7cc58a",
    warning="#e5b94e",
    error="#ee6f6a",
    foreground="#d5dbe3",
    background="#0f1319",
    surface="#151b23",
    panel="#1d2530",
    dark=True,
    variables={
        "border": "#3a4656",
        "border-blurred": "#2a3441",
        "block-cursor-background": "#4fb3bf",
        "block-cursor-foreground": "#0b1015",
        "block-cursor-blurred-background": "#24404a",
        "block-cursor-blurred-foreground": "#d5dbe3",
        "footer-key-foreground": "#f0b35a",
        "footer-background": "#1d2530",
    },
)

LIGHT = Theme(
    name="awq-light",
    primary="#0b7285",
    secondary="#4a6284",
    accent="#a35200",
    success="#2b7a3a",
    warning="#8a5d00",
    error="#b3261e",
    foreground="#20262d",
    background="#fafaf7",
    surface="#f2f2ed",
    panel="#e5e6e0",
    dark=False,
    variables={
        "border": "#b4b8b4",
        "border-blurred": "#d0d3ce",
        "block-cursor-background": "#0b7285",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-blurred-background": "#c9dfe2",
        "block-cursor-blurred-foreground": "#20262d",
        "footer-key-foreground": "#a35200",
        "footer-background": "#e5e6e0",
    },
)

CONTRAST = Theme(
    name="awq-contrast",
    primary="#00ffff",
    secondary="#ffffff",
    accent="#ffff00",
    success="#00ff66",
    warning="#ffd000",
    error="#ff6b6b",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#262626",
    dark=True,
    variables={
        "border": "#ffffff",
        "border-blurred": "#a0a0a0",
        "text-muted": "#d8d8d8",
        "block-cursor-background": "#ffff00",
        "block-cursor-foreground": "#000000",
        "block-cursor-blurred-background": "#5a5a00",
        "block-cursor-blurred-foreground": "#ffffff",
        "footer-key-foreground": "#ffff00",
        "footer-background": "#262626",
    },
)

THEMES = (DARK, LIGHT, CONTRAST)
