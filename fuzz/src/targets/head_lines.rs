//! A second parser of an HTTP/1 head, strict and slow: lines end in CRLF, a name is a token directly before its colon (RFC 9112,
//! 2 and 5). In: a head that the proxy wrote, or one that it accepted. Out: its start line and its fields, or the error.

pub struct Head<'a> {
    pub start: &'a [u8],
    pub fields: Vec<Field<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: &'a [u8],
    /// Without leading and trailing blanks.
    pub value: &'a [u8],
}

impl std::fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name.escape_ascii(), self.value.escape_ascii())
    }
}

/// Hop-by-hop headers (RFC 9110, 7.6.1), in addition to those listed in Connection.
pub const HOP_BY_HOP: [&str; 4] = ["connection", "keep-alive", "proxy-connection", "upgrade"];

impl<'a> Head<'a> {
    /// `bytes` is the complete head, up to and including the empty line.
    pub fn read(bytes: &'a [u8]) -> Result<Head<'a>, &'static str> {
        let lines = bytes.strip_suffix(b"\r\n\r\n").ok_or("a head ends in an empty line")?;
        let mut lines = split(lines);
        let start = lines.next().ok_or("a head has a start line")?;
        let mut fields = Vec::new();
        for line in std::iter::once(start).chain(lines) {
            if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                return Err("a line contains a CR, LF or NUL");
            }
            if std::ptr::eq(line, start) {
                continue;
            }
            let colon = line.iter().position(|byte| *byte == b':').ok_or("a field has a colon")?;
            let (name, value) = (line.get(..colon).unwrap_or(&[]), line.get(colon + 1..).unwrap_or(&[]));
            if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
                return Err("a field's name is a token");
            }
            fields.push(Field { name, value: trim(value) });
        }
        Ok(Head { start, fields })
    }

    pub fn values(&self, name: &str) -> Vec<&'a [u8]> {
        self.fields.iter().filter(|field| field.is(name)).map(|field| field.value).collect()
    }

    /// The options of all Connection fields, in lower case.
    pub fn connection(&self) -> Vec<Vec<u8>> {
        let values = self.values("connection");
        let options = values.iter().flat_map(|value| value.split(|byte| *byte == b','));
        options.map(|option| trim(option).to_ascii_lowercase()).filter(|option| !option.is_empty()).collect()
    }

    pub fn has_option(&self, option: &str) -> bool {
        self.connection().iter().any(|known| known == option.as_bytes())
    }

    /// The fields that must reach the other side unchanged: no framing, no hop-by-hop fields, and not `but`.
    pub fn end_to_end(&self, but: &[&str]) -> Vec<Field<'a>> {
        let listed = self.connection();
        let ends_here = |field: &Field<'_>| {
            let by_connection = listed.contains(&field.name.to_ascii_lowercase());
            by_connection || HOP_BY_HOP.iter().chain(but).any(|name| field.is(name))
        };
        self.fields.iter().filter(|field| !ends_here(field)).copied().collect()
    }
}

impl Field<'_> {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let end = bytes.windows(2).position(|pair| pair == b"\r\n");
        rest = end.and_then(|end| bytes.get(end + 2..));
        bytes.get(..end.unwrap_or(bytes.len()))
    })
}

fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !blank(byte)).map_or(start, |end| end + 1);
    bytes.get(start..end).unwrap_or(&[])
}

/// RFC 9110, 5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
