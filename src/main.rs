//! The `ringraft` command.

fn main() {}
