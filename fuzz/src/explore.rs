//! The loop of one target: its seeds, then mutations of them, until the time has elapsed. In: a target, its corpus, a seed.
//! Out: counts, and each failure, once per place. An input with a new shape is retained and mutated further: the stable compiler
//! has no coverage feedback. Bound: `KEPT_MAX` inputs and `SHAPES_MAX` shapes in memory; a failure is minimized for at most
//! `SHRINK_MAX`.

use crate::attempt::{Failure, attempt};
use crate::desk::Desk;
use crate::mutate::{Mutator, Random};
use crate::targets::Target;
use std::collections::HashSet;
use std::time::{Duration, Instant};

const KEPT_MAX: usize = 4096;
const SHAPES_MAX: usize = 100_000;
const SHRINK_MAX: Duration = Duration::from_secs(3);

/// A third of the attempts mutate the seeds, which have real shapes, and a third the newest inputs.
const NEWEST: usize = 24;

/// An input with the name of its file.
pub struct Seed {
    pub name: String,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct Tally {
    pub inputs: u64,
    pub shapes: usize,
    pub kept: usize,
    pub failures: usize,
}

/// The handler of failures.
pub trait Witness {
    /// A failure at a new place; `seed` is the file of the corpus that causes it unchanged.
    fn failed(&mut self, input: &[u8], failure: &Failure, seed: Option<&str>);
}

pub struct Exploration<'a> {
    pub target: &'a Target,
    pub desk: Desk,
    /// After a failure: continue and find others.
    pub find_all: bool,
    tally: Tally,
    shapes: HashSet<u64>,
    /// The seeds first.
    kept: Vec<Vec<u8>>,
    seeds: usize,
    places: HashSet<String>,
}

impl<'a> Exploration<'a> {
    pub fn new(target: &'a Target, desk: Desk, find_all: bool) -> Exploration<'a> {
        Exploration {
            target,
            desk,
            find_all,
            tally: Tally::default(),
            shapes: HashSet::new(),
            kept: Vec::new(),
            seeds: 0,
            places: HashSet::new(),
        }
    }

    /// Runs until `until`, and each seed at least once.
    pub fn run(mut self, seeds: &[Seed], random: u64, until: Instant, witness: &mut dyn Witness) -> Tally {
        for seed in seeds {
            if !self.kept.contains(&seed.bytes) {
                self.kept.insert(self.seeds, seed.bytes.clone());
                self.seeds += 1;
            }
            if !self.one(&seed.bytes, Some(&seed.name), witness) {
                return self.finish();
            }
        }
        if self.kept.is_empty() {
            self.kept.push(Vec::new());
            self.seeds = 1;
        }
        let mut mutator =
            Mutator { random: Random::new(random), words: self.target.words, input_max: self.target.input_max };
        while Instant::now() < until {
            let (one, other) = (self.pick(&mut mutator.random), self.pick(&mut mutator.random));
            let (one, other) = (self.kept.get(one), self.kept.get(other));
            let input = mutator.mutate(one.map_or(&[], Vec::as_slice), other.map_or(&[], Vec::as_slice));
            if !self.one(&input, None, witness) {
                break;
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Tally {
        (self.tally.shapes, self.tally.kept) = (self.shapes.len(), self.kept.len());
        self.tally
    }

    fn pick(&self, random: &mut Random) -> usize {
        let newest = self.kept.len().min(NEWEST);
        match random.below(3) {
            0 => random.below(self.seeds),
            1 => random.below(self.kept.len()),
            _ => self.kept.len() - 1 - random.below(newest),
        }
    }

    /// Runs one input; returns false if the loop must end.
    fn one(&mut self, input: &[u8], seed: Option<&str>, witness: &mut dyn Witness) -> bool {
        self.desk.put(input);
        self.tally.inputs += 1;
        match attempt(self.target.run, input, false) {
            Ok(shapes) => {
                self.keep(input, &shapes);
                true
            }
            Err(failure) if self.places.contains(&failure.place) => true,
            Err(failure) => {
                self.tally.failures += 1;
                self.places.insert(failure.place.clone());
                // Reported before it is minimized, since the process may exit during that.
                witness.failed(input, &failure, seed);
                if seed.is_none() {
                    let small = self.shrink(input, &failure);
                    if let Err(failure) = attempt(self.target.run, &small, true) {
                        witness.failed(&small, &failure, None);
                    }
                }
                self.find_all
            }
        }
    }

    fn keep(&mut self, input: &[u8], shapes: &[u64]) {
        let room = self.shapes.len() < SHAPES_MAX && self.kept.len() < KEPT_MAX;
        let mut new = false;
        for shape in shapes.iter().filter(|_| room) {
            new |= self.shapes.insert(*shape);
        }
        if new && !self.kept.iter().any(|kept| kept == input) {
            self.kept.push(input.to_vec());
        }
    }

    /// Removes parts as long as it fails at the same place.
    fn shrink(&mut self, input: &[u8], failure: &Failure) -> Vec<u8> {
        let until = Instant::now() + SHRINK_MAX;
        let mut small = input.to_vec();
        let mut width = small.len().div_ceil(2).max(1);
        loop {
            let (mut at, mut shorter) = (0, false);
            while at < small.len() && Instant::now() < until {
                let end = (at + width).min(small.len());
                let without = [small.get(..at).unwrap_or(&[]), small.get(end..).unwrap_or(&[])].concat();
                self.desk.put(&without);
                match attempt(self.target.run, &without, false) {
                    Err(other) if other.place == failure.place => {
                        small = without;
                        shorter = true;
                    }
                    _ => at += width,
                }
            }
            if Instant::now() >= until || (width == 1 && !shorter) {
                return small;
            }
            width = (width / 2).max(1);
        }
    }
}
