//! What the program does.
