//! DATA PLANE: listener, worker, session, pipeline, link, replay, hold.
