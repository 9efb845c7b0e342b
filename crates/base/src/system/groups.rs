//! Group names to group IDs. Parsed here, since a static binary cannot load the NSS modules of the C library (nsswitch.conf(5)).
//! In: the text of /etc/group. Out: a number.

/// One line is `name:password:number:members` (group(5)).
pub fn group(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name() {
        let table = "root:x:0:\nstaff:x:50:me,you\nbroken\nodd:x:many:\n";
        assert_eq!(group(table, "staff"), Some(50));
        assert_eq!(group(table, "staf"), None);
        assert_eq!(group(table, "broken"), None);
        assert_eq!(group(table, "odd"), None);
    }
}
