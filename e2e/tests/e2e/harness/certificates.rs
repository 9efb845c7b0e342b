//! Certificates for tests, made when they are needed. In: names. Out: files in the scene, of openssl. Limits: valid for two days.

use super::process::run_to_end;
use super::{PATIENCE, Scene, peer};

pub const NO_OPENSSL: &str = "openssl is not installed";

/// The certificates of one scene, made by openssl.
pub struct Certificates<'s> {
    scene: &'s Scene,
    openssl: String,
}

impl<'s> Certificates<'s> {
    /// None if openssl is not installed.
    pub fn new(scene: &'s Scene) -> Option<Self> {
        Some(Self { scene, openssl: peer("openssl")?.display().to_string() })
    }

    /// The path of openssl.
    pub fn program(&self) -> &str {
        &self.openssl
    }

    #[track_caller]
    fn openssl(&self, arguments: &str) {
        let filled = self.scene.fill(arguments);
        let words: Vec<&str> = std::iter::once(self.openssl.as_str()).chain(filled.split_whitespace()).collect();
        let (code, _, stderr) = run_to_end(&words, PATIENCE);
        assert_eq!(code, 0, "{words:?}: {stderr}");
    }

    /// A CA with its certificate in NAME.crt and its key in NAME.key.
    pub fn authority(&self, name: &str, subject: &str) {
        let to = format!("-keyout @dir@/{name}.key -out @dir@/{name}.crt");
        self.openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -subj /CN={subject} -addext subjectAltName=DNS:localhost -days 2 {to}"
        ));
    }

    /// A certificate of `ca` for one host name.
    pub fn leaf(&self, name: &str, host: &str, validity: &str) {
        self.scene.write(&format!("{name}.ext"), format!("subjectAltName=DNS:{host}\nbasicConstraints=CA:FALSE\n"));
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -subj /CN={host} -keyout @dir@/{name}.key -out @dir@/{name}.csr"
        ));
        let from = format!("-in @dir@/{name}.csr -extfile @dir@/{name}.ext -out @dir@/{name}.crt {validity}");
        self.openssl(&format!("x509 -req -CA @dir@/ca.crt -CAkey @dir@/ca.key -CAcreateserial {from}"));
    }
}
