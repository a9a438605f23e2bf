//! Compiles Metal kernels and the emulator into one shared library; used by the build script and, for kernels with planted faults, by tests.
//!
//! The text is that which a Mac compiles. clang expands its macros, the signatures are read, each kernel gets a function that unpacks its arguments, and the
//! attributes, which C++ lacks, are taken out. Address spaces stay: clang knows them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `text` with the emulator of `emulator` (this crate's folder) into the library `out`; intermediate files lie beside it.
///
/// # Errors
/// When there is no clang, when the text is not in the dialect, or with what clang says.
pub fn compile(emulator: &Path, text: &str, out: &Path) -> Result<(), String> {
    let (source, translated) = (out.with_extension("metal"), out.with_extension("cpp"));
    write(&source, text)?;
    let include = emulator.join("include");
    let mut expand = Command::new(compiler()?);
    expand
        .args(["-E", "-x", "c++", "-Wno-unknown-pragmas", "-include"])
        .arg(include.join("msl/shared.h"))
        .arg("-I")
        .arg(include.join("msl"))
        .arg(&source);
    write(&translated, &translate(&run(&mut expand)?)?)?;
    let mut command = Command::new(compiler()?);
    command.args([
        "-std=c++20",
        "-O2",
        "-g1",
        "-fPIC",
        "-shared",
        "-pthread",
        "-fvisibility=hidden",
    ]);
    command.args([
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
        "-Wno-unused-variable",
    ]);
    // IEEE, nothing fused but what says so.
    command.args(["-ffp-contract=off", "-fno-fast-math"]);
    if cfg!(target_arch = "x86_64") {
        // FMA and F16C as instructions; the library may be carried to another machine of this level.
        command.arg("-march=x86-64-v3");
    }
    command
        .arg("-I")
        .arg(&include)
        .arg("-I")
        .arg(include.join("metal"));
    command.arg("-I").arg(emulator.join("device"));
    command
        .args(["-x", "c++"])
        .arg(&translated)
        .args(sources(emulator))
        .arg("-o")
        .arg(out);
    run(&mut command).map(|_| ())
}

/// The emulator's own sources.
fn sources(emulator: &Path) -> Vec<PathBuf> {
    ["fibre", "block", "memory", "metal"]
        .iter()
        .map(|name| emulator.join("device").join(format!("{name}.cpp")))
        .collect()
}

/// A clang that knows `_Float16`: `DS4_CLANG`, or the first that is there.
fn compiler() -> Result<String, String> {
    if let Ok(named) = std::env::var("DS4_CLANG") {
        return Ok(named);
    }
    let works = |name: &&str| {
        let version = Command::new(name).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    };
    ["clang++-19", "clang++-18", "clang++-17", "clang++-16", "clang++"]
        .into_iter()
        .find(works)
        .map(str::to_owned)
        .ok_or_else(|| {
            "clang++: not found; the Metal kernels run on the CPU through clang 16 or newer (Debian: apt-get install clang-19), or set DS4_CLANG".into()
        })
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{command:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// MSL whose macros are expanded, as C++ with a thunk per kernel.
///
/// # Errors
/// Names what the dialect does not have.
pub fn translate(expanded: &str) -> Result<String, String> {
    check_pointers(expanded)?;
    let mut out = String::from("#include <metal_stdlib>\n#include \"metal.h\"\n");
    out += &without_attributes(expanded);
    for (at, found) in expanded.match_indices("kernel void ") {
        out += &thunk(&expanded[at + found.len()..])?;
    }
    Ok(out)
}

/// The text without `[[...]]`.
fn without_attributes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[[") {
        out += before;
        rest = after.split_once("]]").map_or("", |(_, rest)| rest);
    }
    out + rest
}

/// A parameter with its attribute: `device const float* x [[buffer(0)]]`.
struct Parameter<'a> {
    declared: &'a str,
    attribute: &'a str,
    index: usize,
}

/// Registers the kernel whose name and parameters `text` starts with.
fn thunk(text: &str) -> Result<String, String> {
    let (name, rest) = text.split_once('(').ok_or("a kernel without parameters")?;
    let name = name.trim();
    let parameters = parameters(rest).map_err(|why| format!("kernel {name}: {why}"))?;
    let (mut arguments, mut described, mut next) = (Vec::new(), Vec::new(), 0);
    for parameter in &parameters {
        let value = match parameter.attribute {
            "buffer" if parameter.index == next => {
                next += 1;
                let (value, kind, size) = buffer(parameter)?;
                described.push(format!("{{'{kind}', {size}}}"));
                value
            }
            "buffer" => {
                return Err(format!(
                    "kernel {name}: buffer({}) where {next} is next",
                    parameter.index
                ));
            }
            "threadgroup" => format!(
                "({})uintptr_t(::simt::current->dynamic)",
                type_of(parameter.declared)
            ),
            other => {
                place(other, type_of(parameter.declared)).map_err(|why| format!("kernel {name}: {why}"))?
            }
        };
        arguments.push(value);
    }
    Ok(format!(
        "static void thunk_{name}([[maybe_unused]] void** arguments) {{ {name}({}); }}\n\
         static const ::simt::Parameter parameters_{name}[] = {{{}}};\n\
         static const ::simt::MetalKernel kernel_{name}(\"{name}\", thunk_{name}, parameters_{name}, {next});\n",
        arguments.join(", "),
        described.join(", "),
    ))
}

/// How a buffer is passed, its kind, and the size of its element.
fn buffer(parameter: &Parameter<'_>) -> Result<(String, char, String), String> {
    let (kind, index) = (type_of(parameter.declared), parameter.index);
    let pointed = kind.trim_end_matches(['*', '&']).trim();
    let size = |space: &str| {
        format!(
            "sizeof({})",
            pointed.trim_start_matches(space).replace("const ", "")
        )
    };
    match (kind.chars().last(), pointed.split_whitespace().next()) {
        (Some('*'), Some("device")) => {
            let writes = !pointed.contains("const ");
            Ok((
                format!("({kind})uintptr_t(arguments[{index}])"),
                if writes { 'w' } else { 'r' },
                size("device "),
            ))
        }
        (Some('&'), Some("constant")) => Ok((
            format!("*({pointed}*)uintptr_t(arguments[{index}])"),
            'c',
            size("constant "),
        )),
        _ => Err(format!(
            "buffer({index}) is neither a device pointer nor constants: {}",
            parameter.declared
        )),
    }
}

/// Where a thread is. Positions that are vectors must all have as many places (Metal Shading Language Specification, kernel attributes).
fn place(attribute: &str, kind: &str) -> Result<String, String> {
    let pair = |of: &str| format!("uint2{{{of}.x, {of}.y}}");
    match (attribute, kind) {
        ("threadgroup_position_in_grid", "uint2") => Ok(pair("::simt::current->block")),
        ("threads_per_threadgroup", "uint2") => Ok(pair("::simt::block_shape")),
        ("thread_index_in_threadgroup", "uint") => Ok("::simt::current->linear".into()),
        ("thread_index_in_simdgroup", "uint") => Ok("::simt::current->lane".into()),
        ("simdgroup_index_in_threadgroup", "uint") => Ok("::simt::current->warp".into()),
        _ => Err(format!(
            "the attribute {attribute} on {kind} is not of the dialect"
        )),
    }
}

/// The type of a declaration: all but its last word.
fn type_of(declared: &str) -> &str {
    declared
        .trim_end_matches(|c: char| c.is_alphanumeric() || c == '_')
        .trim()
}

/// The parameters up to the closing parenthesis.
fn parameters(text: &str) -> Result<Vec<Parameter<'_>>, String> {
    let (mut depth, mut start, mut found) = (1, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '<' => depth += 1,
            ']' | '>' => depth -= 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            found.push(parameter(text[start..at].trim())?);
            start = at + 1;
        }
        if depth == 0 {
            return Ok(found);
        }
    }
    Err("the parameters do not end".into())
}

fn parameter(text: &str) -> Result<Parameter<'_>, String> {
    let without = || format!("a parameter without attribute: {text}");
    let (declared, rest) = text.split_once("[[").ok_or_else(without)?;
    let attribute = rest.trim_end_matches("]]").trim();
    let (attribute, index) = match attribute.split_once('(') {
        Some((name, index)) => (name, index.trim_end_matches(')').parse().map_err(|_| without())?),
        None => (attribute, 0),
    };
    Ok(Parameter {
        declared: declared.trim(),
        attribute,
        index,
    })
}

/// Every pointer and reference names its address space, as a Mac's compiler demands and clang does not.
fn check_pointers(text: &str) -> Result<(), String> {
    const SPACES: [&str; 4] = ["device", "constant", "threadgroup", "thread"];
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for (at, _) in line.match_indices(['*', '&']) {
            if !declares(&line[..at], &line[at + 1..]) {
                continue;
            }
            let words: Vec<&str> = line[..at]
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .filter(|word| !word.is_empty())
                .collect();
            let named = words.iter().rev().skip(1).find(|word| **word != "const");
            if !named.is_some_and(|word| SPACES.contains(word)) {
                return Err(format!(
                    "line {}: a pointer without address space: {}",
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    Ok(())
}

/// Whether `*` or `&` between the two texts belongs to a type: it follows a type's name directly, and a name or an end follows it.
fn declares(before: &str, after: &str) -> bool {
    const TYPES: [&str; 9] = [
        "float", "uint", "int", "uchar", "char", "ushort", "ulong", "half", "void",
    ];
    let word = before
        .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
        .unwrap_or_default();
    let is_type = TYPES.contains(&word)
        || word.chars().next().is_some_and(char::is_uppercase) && word.chars().any(char::is_lowercase);
    is_type && after.starts_with([' ', '>', ')'])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::translate;

    const PLACE: &str = "uint2 group [[threadgroup_position_in_grid]]";

    #[test]
    fn a_kernel_gets_a_thunk_with_its_buffers_in_order() {
        let text = format!(
            "kernel void f(device const float* x [[buffer(0)]], device uchar* y [[buffer(1)]], constant Sizes& c [[buffer(2)]], {PLACE}) {{}}"
        );
        let out = translate(&text).unwrap();
        assert!(
            out.contains(
                "kernel void f(device const float* x , device uchar* y , constant Sizes& c , uint2 group ) {}"
            ),
            "{out}"
        );
        assert!(
            out.contains("{'r', sizeof(float)}, {'w', sizeof(uchar)}, {'c', sizeof(Sizes)}"),
            "{out}"
        );
        assert!(out.contains("(device const float*)uintptr_t(arguments[0]), (device uchar*)uintptr_t(arguments[1]), *(constant Sizes*)uintptr_t(arguments[2])"), "{out}");
    }

    #[test]
    fn what_a_mac_would_refuse_is_refused() {
        let refused = |text: String| translate(&text).unwrap_err();
        assert!(
            refused(format!(
                "kernel void f(device float* x [[buffer(1)]], {PLACE}) {{}}"
            ))
            .contains("buffer(1) where 0 is next")
        );
        assert!(
            refused("kernel void f(uint i [[thread_position_in_grid]]) {}".into())
                .contains("not of the dialect")
        );
        assert!(
            refused("static inline float f(float* x) { return x[0]; }".into())
                .contains("without address space")
        );
        assert!(
            refused("static inline float f(thread const Piece& a, Piece& b) { return 0; }".into())
                .contains("without address space")
        );
        assert!(translate("static inline float f(thread float* x, uint a) { return a * 2 & x[0]; }").is_ok());
    }
}
