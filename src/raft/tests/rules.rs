//! Rules that need numbers rather than a trace.
