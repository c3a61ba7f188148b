//! The Active-Active stand-in.
