//! The Active-Active stand-in, as a program.

fn main() {}
