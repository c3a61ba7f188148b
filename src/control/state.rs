//! The file in which a pin survives restarts: `{"pinned":"NAME"}`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// The pinned replica's name.
    pinned: Option<String>,
}

/// Why the state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("{}: not a state file: {cause}", path.display())]
    Malformed { path: PathBuf, cause: serde_json::Error },
}

/// The remembered name; `None` when the file is not there or remembers no pin. Blocks.
pub(super) fn load(path: &Path) -> Result<Option<String>, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => {
            return Err(StateError::Io {
                path: path.to_owned(),
                cause,
            });
        }
    };
    let state: State = serde_json::from_slice(&text).map_err(|cause| StateError::Malformed {
        path: path.to_owned(),
        cause,
    })?;
    Ok(state.pinned)
}

/// Replaces the file as a whole: a reader, or a crash, finds the old state or the new one. Blocks.
pub(super) fn save(path: &Path, pinned: Option<&str>) -> Result<(), StateError> {
    let state = State {
        pinned: pinned.map(str::to_owned),
    };
    let replace = || -> io::Result<()> {
        let text = serde_json::to_vec(&state)?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        let replaced = written.and_then(|()| fs::rename(&temporary, path));
        if replaced.is_err() {
            let _ = fs::remove_file(&temporary);
            return replaced;
        }
        // The rename is durable once the directory is.
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::File::open(directory)?.sync_all()
    };
    replace().map_err(|cause| StateError::Io {
        path: path.to_owned(),
        cause,
    })
}

/// Writes the file in a thread of the blocking pool, one pin after the other: a slow disk must not look like a stall
/// of the sidecar.
#[derive(Debug)]
pub(super) struct Saver;

impl Saver {
    /// Where pins go in, and the outcome of each comes out, in order.
    pub(super) fn spawn(
        path: PathBuf,
    ) -> (
        mpsc::UnboundedSender<Option<String>>,
        mpsc::UnboundedReceiver<Result<(), String>>,
    ) {
        let (pins, mut wanted) = mpsc::unbounded_channel::<Option<String>>();
        let (outcomes, saved) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(pin) = wanted.recv().await {
                let path = path.clone();
                let outcome = tokio::task::spawn_blocking(move || save(&path, pin.as_deref())).await;
                let outcome = match outcome {
                    Ok(outcome) => outcome.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                if outcomes.send(outcome).is_err() {
                    return;
                }
            }
        });
        (pins, saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_and_forgets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(load(&path).unwrap(), None, "no file is no pin");
        save(&path, Some("eu-west")).unwrap();
        assert_eq!(load(&path).unwrap().as_deref(), Some("eu-west"));
        save(&path, None).unwrap();
        assert_eq!(load(&path).unwrap(), None);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays: {left:?}");
    }

    #[test]
    fn what_is_no_state_file_is_told_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for text in ["", "pinned", "{\"pinned\":3}", "{\"pined\":\"eu\"}"] {
            fs::write(&path, text).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("state.json: not a state file"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_failed_save_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        // A directory in the file's place: no rename replaces it, whoever runs the test.
        let path = dir.path().join("state.json");
        fs::create_dir(&path).unwrap();
        assert!(matches!(save(&path, Some("eu")), Err(StateError::Io { .. })));
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let missing = dir.path().join("no/such/dir/state.json");
        let error = save(&missing, Some("eu")).unwrap_err().to_string();
        assert!(error.contains("no/such/dir"), "{error}");
    }
}
