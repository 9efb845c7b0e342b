//! Private items that the fuzz targets use. In and out: those items; nothing else uses this module.

pub use crate::checkpoint::{Checkpoints, FileId, Fingerprint, Position, SLOTS_MAX};
pub use crate::encode::Encoder;
pub use crate::framer::Framer;
