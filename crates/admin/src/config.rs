//! The section `admin` of the configuration.

use crate::{authorize, socket};
use config::diag::Diagnostic;
use config::tree::Node;
use config::unit::{Address, Secret};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::path::PathBuf;

/// Admin interface: listeners, socket, access. Nothing listens unless it is configured here.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Read-only endpoints: `/started`, `/ready`, `/live`, `/metrics`, `/ledger`, `/status`, `/config` and `/`. Keep it on
    /// loopback.
    #[serde(default)]
    pub listen: Option<Address>,
    /// Host names by which browsers may reach `listen`, in addition to IP addresses and `localhost`. A request with any other
    /// name is rejected with 421 (DNS rebinding).
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
    /// A Unix socket for the same endpoints, and for changes: `/reload`, `/log-level`, `/upgrade`, `/stop`.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// The octal mode of the socket's file, such as `0660`. Default: `0600`, its owner only.
    #[serde(default)]
    pub socket_mode: Mode,
    /// The group of the socket's file, by name or number. Default: Outrigger's own.
    #[serde(default)]
    pub socket_group: Option<String>,
    /// Required for each change, as `Authorization: Bearer TOKEN`; visible ASCII without spaces. Commands send the token of
    /// `--token-file`.
    #[serde(default)]
    pub token: Option<Secret>,
    /// A file with the token, re-read for each change. Alternative to `token`.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// `/started`, `/ready` and `/live` only, for probes from other hosts.
    #[serde(default)]
    pub probes_listen: Option<Address>,
}

/// The mode of a file, at most 0777.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Default for Mode {
    fn default() -> Mode {
        Mode(0o600)
    }
}

impl Mode {
    /// Parses `0660`. The error is only the reason; the caller knows the location.
    pub fn parse(text: &str) -> Result<Mode, String> {
        let digits = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| byte.is_ascii_digit());
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
        mode.map(Mode)
            .ok_or_else(|| format!("`admin.socket_mode`: `{text}` is not an octal file mode: write 0600 or 0660"))
    }

    fn allows_every_user(self) -> bool {
        // Connecting to a socket requires write permission on its file (unix(7)).
        self.0 & 0o002 != 0
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
        Mode::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Mode {
    fn schema_name() -> Cow<'static, str> {
        "Mode".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^0?[0-7]{3}$", "description": "The octal mode of a file: 0600, 0660" })
    }
}

impl Config {
    /// Checks that the schema cannot express. `node` is the node of this section.
    pub fn check(&self, node: &Node) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        let place = |path: &[&str]| node.at(path).place;
        if let Some(group) = &self.socket_group
            && let Err(reason) = socket::group_number(group)
        {
            findings.push(
                Diagnostic::error(place(&["socket_group"]), format!("`admin.socket_group`: {reason}"))
                    .help(socket::GROUP_HELP),
            );
        }
        if let Some(token) = &self.token
            && !authorize::is_valid_token(token)
        {
            let message = "`admin.token` is empty, or has characters that are not allowed in a header";
            findings.push(
                Diagnostic::error(place(&["token"]), message).help("use visible ASCII characters without spaces"),
            );
        }
        if self.token.is_some() && self.token_file.is_some() {
            let message = "`admin.token` and `admin.token_file` are both set";
            findings.push(Diagnostic::error(place(&["token_file"]), message).help("keep one of them"));
        }
        for (index, host) in self.allowed_hosts.iter().enumerate().filter(|(_, host)| !authorize::is_name(host)) {
            let message = format!("`admin.allowed_hosts`: `{host}` is not a host name");
            findings.push(
                Diagnostic::error(place(&["allowed_hosts", &index.to_string()]), message)
                    .help("write only the name, without scheme, port and path: outrigger.example"),
            );
        }
        if self.socket_mode.allows_every_user() && self.token.is_none() && self.token_file.is_none() {
            let message = format!(
                "`admin.socket_mode` {:04o} allows every local user to stop and upgrade Outrigger",
                self.socket_mode.0
            );
            findings.push(
                Diagnostic::warning(place(&["socket_mode"]), message)
                    .help("use 0660 with admin.socket_group, or set admin.token or admin.token_file"),
            );
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::interpolate::Lookup;

    fn check(text: &str, expect: &str) {
        let lookup = Lookup { variable: &|_| None, file: &|_| Ok("s3cret\n".into()) };
        let report = match config::load::load::<Config>("f", text, &lookup) {
            Ok(loaded) => {
                let mut report = loaded.report;
                report.extend(loaded.config.check(&loaded.tree));
                report
            }
            Err(report) => report,
        };
        let shown = report.render();
        match expect {
            "" => assert!(shown.is_empty(), "{text}: {shown}"),
            part => assert!(shown.contains(part), "{text}: {shown}"),
        }
    }

    #[test]
    fn each_admin_error_has_its_location() {
        check("{ socket: /a, socket_mode: 0660, socket_group: root }", "");
        check("{ socket: /a, socket_mode: \"0660\", socket_group: 1000 }", "");
        check("{ socket_mode: 0666, token: \"${file:/t}\" }", "");
        check("{ socket_mode: 0666 }", "warning: `admin.socket_mode` 0666 allows every local user");
        check("{ socket_mode: 660 }", "");
        for wrong in ["rw-rw----", "0888", "7777", "-600", "", "00660", "60"] {
            check(&format!("{{ socket_mode: \"{wrong}\" }}"), "is not an octal file mode");
        }
        check("{ socket_mode: 9 }", "f:1:16");
        check("{ socket_group: no-such-group }", "`no-such-group`");
        check("{ token: \"\" }", "`admin.token` is empty");
        check("{ token: \"two words\" }", "`admin.token` is empty, or");
        check("{ allowed_hosts: [outrigger.example, sidecar] }", "");
        check("{ allowed_hosts: [a, \"http://b/\"] }", "f:1:22");
        check("{ allowed_hosts: [\"b:9900\"] }", "`b:9900` is not a host name");
    }
}
