//! What the fuzz targets reach beside the public parts. In and out: those parts themselves; nothing else uses this.

pub use crate::checkpoint::{Checkpoints, FileId, Fingerprint, Position, SLOTS_MAX};
pub use crate::encode::Encoder;
pub use crate::framer::Framer;
