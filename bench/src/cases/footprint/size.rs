//! Size of the binary, and of a copy without symbols; compared with Envoy, which is a single binary too.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::scene::Scene;
use crate::peers::ENVOY;
use crate::programs;
use crate::report::{Limit, OURS, Report};
use crate::running::finish;
use crate::scratch::Scratch;

pub fn record(scene: &Scene, report: &mut Report) {
    let size = report.row("binary", "bytes", 0);
    let stripped = report.limited_row("binary, stripped", "bytes", 0, vec![Limit::Ours(20e6)]);
    for row in [size, stripped] {
        report.about(row, &[ENVOY]);
    }
    for (name, program) in scene.present(&[OURS, ENVOY]) {
        match sizes(&scene.scratch, program) {
            Ok((original, without_symbols)) => {
                report.record(size, name, 0, original as f64);
                report.record(stripped, name, 0, without_symbols as f64);
            }
            Err(reason) => report.remark(format!("{name}, size: {reason}")),
        }
    }
}

fn sizes(scratch: &Scratch, program: &Path) -> Result<(u64, u64), String> {
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).map_err(|e| format!("{}: {e}", path.display()));
    let copy = scratch.fresh("stripped")?.join("binary");
    let mut strip = Command::new(programs::system("strip").map_err(|_| "strip is not installed".to_owned())?);
    strip.arg("--strip-all").arg("-o").arg(&copy).arg(program);
    finish(strip, Duration::from_secs(60))?;
    Ok((size(program)?, size(&copy)?))
}
