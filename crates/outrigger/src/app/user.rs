//! Resolves names of users and groups from /etc/passwd and /etc/group (passwd(5), group(5)): a static binary cannot load the
//! other sources of the C library (NSS). In: `user`, `user:group`, by name or number. Out: the user and groups that the app runs
//! as.

use std::path::Path;
use sys::process::User;

/// Errors are messages for users.
pub fn user(text: &str) -> Result<User, String> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    resolve(text, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve(text: &str, passwd: &str, groups: &str) -> Result<User, String> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name) || (name.parse::<u32>().is_ok() && fields.get(2) == Some(&name)));
    let field = |index: usize| entry.as_ref().and_then(|fields| fields.get(index)?.parse::<u32>().ok());
    let uid = name
        .parse()
        .ok()
        .or_else(|| field(2))
        .ok_or_else(|| format!("there is no user `{name}` in /etc/passwd; use one that exists, or a number"))?;
    let group_number = |group: &str| {
        group
            .parse()
            .ok()
            .or_else(|| base::system::groups::group(groups, group))
            .ok_or_else(|| format!("there is no group `{group}` in /etc/group; use one that exists, or a number"))
    };
    let gid = match group {
        Some(group) => group_number(group)?,
        None => field(3)
            .ok_or_else(|| format!("user {uid} is not in /etc/passwd, so its group is unknown; write `{uid}:GROUP`"))?,
    };
    let known_name = entry.as_ref().and_then(|fields| fields.first().copied());
    let member = |line: &&str| {
        let members = line.split(':').nth(3).unwrap_or("");
        known_name.is_some_and(|name| members.split(',').any(|member| member == name))
    };
    let mut supplementary: Vec<u32> =
        groups.lines().filter(member).filter_map(|line| line.split(':').nth(2)?.parse().ok()).collect();
    supplementary.push(gid);
    supplementary.sort_unstable();
    supplementary.dedup();
    Ok(User { uid, gid, groups: supplementary })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUPS: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:web,root\n";

    fn check(text: &str, expect: Result<(u32, u32, &[u32]), &str>) {
        match (resolve(text, PASSWD, GROUPS), expect) {
            (Ok(user), Ok((uid, gid, groups))) => {
                assert_eq!((user.uid, user.gid, &user.groups[..]), (uid, gid, groups), "{text}")
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        check("web", Ok((33, 34, &[34, 50])));
        check("web:logs", Ok((33, 50, &[50])));
        check("33", Ok((33, 34, &[34, 50])));
        check("1000:1000", Ok((1000, 1000, &[1000])));
        check("0:0", Ok((0, 0, &[0, 50])));
        check("1000", Err("1000:GROUP"));
        check("no-such-user", Err("no user `no-such-user`"));
        check("web:none", Err("no group `none`"));
    }
}
