//! A small random number generator (xorshift), whose only purpose is reproducible runs. In: `E2E_SEED`, or else the clock. Out:
//! numbers, and the seed on stderr.

use std::time::SystemTime;

pub struct Random(u64);

impl Random {
    pub fn seeded() -> Self {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let seed = std::env::var("E2E_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock);
        eprintln!("E2E_SEED={seed}");
        Self(seed | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
