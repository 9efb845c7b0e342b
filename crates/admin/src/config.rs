//! What a person writes under `admin`.

use crate::{authorize, socket};
use config::diag::Diagnostic;
use config::tree::Node;
use config::unit::{Address, Secret};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::path::PathBuf;

/// Where Outrigger shows itself. Nothing listens unless it is named here.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Read-only pages: `/started`, `/ready`, `/live`, `/metrics`, `/ledger`, `/status`, `/config` and `/`. Keep it on
    /// loopback.
    #[serde(default)]
    pub listen: Option<Address>,
    /// Host names by which browsers may reach `listen`, beside IP addresses and `localhost`. A request by any other name is
    /// refused with 421 (DNS rebinding).
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
    /// A unix socket for the same pages, and for changes: `/reload`, `/log-level`, `/upgrade`, `/stop`.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// The octal mode of the socket's file, such as `0660`. Default: `0600`, its owner alone.
    #[serde(default)]
    pub socket_mode: Mode,
    /// The group of the socket's file, by name or number. Default: Outrigger's own.
    #[serde(default)]
    pub socket_group: Option<String>,
    /// Required for each change, as `Authorization: Bearer TOKEN`; visible ASCII without spaces. Commands send the one in
    /// `--token-file`.
    #[serde(default)]
    pub token: Option<Secret>,
    /// A file with the token, read again for each change. Instead of `token`.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// `/started`, `/ready` and `/live` alone, for probes from outside.
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
    /// Reads `0660`. The error is the reason alone; the caller knows the place.
    pub fn parse(text: &str) -> Result<Mode, String> {
        let digits = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| byte.is_ascii_digit());
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
        mode.map(Mode)
            .ok_or_else(|| format!("`mode`: `{text}` is not the octal mode of a file: write 0600, 0660 or the like"))
    }

    fn opens_to_everybody(self) -> bool {
        // A connection to a socket needs the right to write to its file (unix(7)).
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
    /// What the schema cannot see. `node` is the section's own.
    pub fn check(&self, node: &Node) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        let place = |path: &[&str]| node.at(path).place;
        if let Some(group) = &self.socket_group
            && let Err(reason) = socket::group_number(group)
        {
            findings.push(
                Diagnostic::error(place(&["socket_group"]), format!("`socket_group`: {reason}"))
                    .help(socket::GROUP_HELP),
            );
        }
        if let Some(token) = &self.token
            && !authorize::can_be_sent(token)
        {
            let message = "`token` is empty, or has characters that cannot stand in a header";
            findings.push(
                Diagnostic::error(place(&["token"]), message).help("fill in visible ASCII characters without spaces"),
            );
        }
        if self.token.is_some() && self.token_file.is_some() {
            let message = "`token` and `token_file` are both set";
            findings.push(Diagnostic::error(place(&["token_file"]), message).help("keep one of them"));
        }
        for (index, host) in self.allowed_hosts.iter().enumerate().filter(|(_, host)| !authorize::is_name(host)) {
            let message = format!("`allowed_hosts`: `{host}` is not the name of a host");
            findings.push(
                Diagnostic::error(place(&["allowed_hosts", &index.to_string()]), message)
                    .help("write the name alone, without scheme, port and path: outrigger.example"),
            );
        }
        if self.socket_mode.opens_to_everybody() && self.token.is_none() && self.token_file.is_none() {
            let message =
                format!("`socket_mode` {:04o} lets everybody on this machine stop and upgrade us", self.socket_mode.0);
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
    fn each_mistake_of_the_socket_is_found_with_its_place() {
        check("{ socket: /a, socket_mode: 0660, socket_group: root }", "");
        check("{ socket: /a, socket_mode: \"0660\", socket_group: 1000 }", "");
        check("{ socket_mode: 0666, token: \"${file:/t}\" }", "");
        check("{ socket_mode: 0666 }", "warning: `socket_mode` 0666 lets everybody");
        check("{ socket_mode: 660 }", "");
        for wrong in ["rw-rw----", "0888", "7777", "-600", "", "00660", "60"] {
            check(&format!("{{ socket_mode: \"{wrong}\" }}"), "is not the octal mode of a file");
        }
        check("{ socket_mode: 9 }", "f:1:16");
        check("{ socket_group: no-such-group }", "`no-such-group`");
        check("{ token: \"\" }", "`token` is empty");
        check("{ token: \"two words\" }", "`token` is empty, or");
        check("{ allowed_hosts: [outrigger.example, sidecar] }", "");
        check("{ allowed_hosts: [a, \"http://b/\"] }", "f:1:22");
        check("{ allowed_hosts: [\"b:9900\"] }", "`b:9900` is not the name of a host");
    }
}
