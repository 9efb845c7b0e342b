//! The delay that a wrapper adds to the start of the app: compared with dumb-init and tini.
//!
//! The app prints the clock at its first instruction and exits. Its time counts from just before the exec of its
//! wrapper; the time of the unwrapped app, started in the same turn, is subtracted. Nothing delays the start: sync, which
//! waits for a first revision, is disabled. A round is twenty starts of each; the result is the median.

use std::time::Duration;

use super::INITS;
use super::parts::Part;
use super::scene::{App, Scene, command};
use crate::app;
use crate::peers;
use crate::report::{Limit, OURS, Report, RowId, median};
use crate::running::finish;

const STARTS: usize = 20;
const START_LIMIT: Duration = Duration::from_secs(20);

const SETS: [(&str, &[Part]); 2] =
    [("no job", &[]), ("logs, metrics and proxy", &[Part::Logs, Part::Metrics, Part::Proxy])];

pub struct Rows {
    added: Vec<RowId>,
}

/// One way to start the app.
struct Way {
    name: &'static str,
    row: RowId,
    words: Vec<String>,
    added_ms: Vec<f64>,
}

impl Rows {
    pub fn new(report: &mut Report) -> Self {
        let added = SETS.map(|(title, parts)| {
            let measure = format!("start of the app, added, {title}");
            let row = report.limited_row(measure, "ms", 2, vec![Limit::Ours(10.0)]);
            // An init has no jobs.
            report.about(row, if parts.is_empty() { &INITS[..] } else { &[] })
        });
        Self { added: added.to_vec() }
    }

    pub fn measure(&self, scene: &Scene, report: &mut Report, round: usize) {
        eprintln!("    {STARTS} starts of the app");
        let outcome = app::stamp().and_then(|alone| {
            let mut ways = self.ways(scene, &alone)?;
            for _ in 0..STARTS {
                let unwrapped = first_instruction(&alone)?;
                for way in &mut ways {
                    let wrapped = first_instruction(&way.words).map_err(|fault| format!("{}: {fault}", way.name))?;
                    way.added_ms.push((wrapped.as_secs_f64() - unwrapped.as_secs_f64()) * 1e3);
                }
            }
            Ok(ways)
        });
        match outcome {
            Err(reason) => report.remark(format!("start of the app: {reason}")),
            Ok(ways) => {
                for way in ways {
                    median(way.added_ms).into_iter().for_each(|added| report.record(way.row, way.name, round, added));
                }
            }
        }
    }

    fn ways(&self, scene: &Scene, alone: &[String]) -> Result<Vec<Way>, String> {
        let mut ways = Vec::new();
        let mut way = |name, row, words| ways.push(Way { name, row, words, added_ms: Vec::with_capacity(STARTS) });
        for (place, (row, (_, parts))) in self.added.iter().zip(SETS).enumerate() {
            if let Some(program) = scene.program(OURS) {
                let directory = scene.scratch.fresh(&format!("start-{place}"))?;
                let (words, _) = scene.ours(program, &directory, parts, &App::of(alone.to_vec()))?;
                way(OURS, *row, words);
            }
        }
        for (name, program) in scene.present(&INITS) {
            let mut words = vec![program.to_string_lossy().into_owned()];
            words.extend(peers::wrapped(name, alone));
            self.added.first().into_iter().for_each(|row| way(name, *row, words.clone()));
        }
        Ok(ways)
    }
}

/// From just before fork and exec of `words` to the app's first instruction.
fn first_instruction(words: &[String]) -> Result<Duration, String> {
    let began = app::now();
    let printed = finish(command(words), START_LIMIT)?;
    let at: u64 = printed.trim().parse().map_err(|_| format!("`{}` is not a time", printed.trim()))?;
    Duration::from_nanos(at).checked_sub(began).ok_or_else(|| "the app's time is before its start".to_owned())
}
