//! The `pulsegate` program.

fn main() {}
