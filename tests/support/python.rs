//! Python with redis-py, out of the checkout's own venv.

use std::path::Path;
use std::process::Command;

/// The interpreter with its first argument, in the checkout's top folder.
pub(crate) fn run(first: &str) -> Command {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = top.join(".venv/bin/python");
    assert!(
        python.is_file(),
        "{} is missing: run `make test`, which makes it",
        python.display()
    );
    let mut command = Command::new(python);
    command
        .arg(first)
        .current_dir(top)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
