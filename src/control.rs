//! The select/apply shell around `decision`.
