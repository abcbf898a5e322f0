//! What an ONNX file says about itself, read without a runtime: so a fault can be explained that the runtime only states.
//!
//! A reader of the few protobuf fields that matter (`onnx/onnx.proto`, IR 3 to 13). Pure; any bytes give a value or words,
//! never a panic; nothing is copied but names. Overload: a file's size bounds the work, nesting is four deep.

use std::collections::{BTreeMap, BTreeSet};

/// An input or an output of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// As ONNX writes types: `float32`, `uint8`, `int64`…
    pub element: &'static str,
    /// A number, a name (dynamic), or neither (unknown).
    pub sides: Vec<Side>,
    /// Whether the graph states a shape at all.
    pub has_shape: bool,
}

/// One side of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    Fixed(u64),
    /// Dynamic, with its name; an empty name says nothing.
    Dynamic(String),
}

impl Side {
    #[must_use]
    pub fn fixed(&self) -> Option<u64> {
        match self {
            Side::Fixed(side) => Some(*side),
            Side::Dynamic(_) => None,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Side::Fixed(side) => write!(f, "{side}"),
            Side::Dynamic(name) if name.is_empty() => f.write_str("?"),
            Side::Dynamic(name) => f.write_str(name),
        }
    }
}

impl std::fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}[", self.name, self.element)?;
        for (index, side) in self.sides.iter().enumerate() {
            write!(f, "{}{side}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str(if self.has_shape { "]" } else { "unknown shape]" })
    }
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    pub ir_version: u64,
    pub producer: String,
    /// Version by domain; the empty domain is ONNX's own.
    pub opsets: BTreeMap<String, u64>,
    /// Without the weights.
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    pub node_count: usize,
    /// Operators and how often each is used.
    pub operators: BTreeMap<String, usize>,
    /// Files beside the model that hold weights.
    pub external_files: BTreeSet<String>,
    pub metadata: BTreeMap<String, String>,
}

/// Read a model's bytes.
///
/// # Errors
/// When they are empty, cut off, or no ONNX model, in words.
pub fn read(bytes: &[u8]) -> Result<Graph, String> {
    if bytes.is_empty() {
        return Err("it is empty (0 bytes); export or copy it again".to_owned());
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err("it is a Git LFS pointer and not the model; run `git lfs pull`".to_owned());
    }
    let no_onnx = || "it is no ONNX model, or cut off; export or copy it again".to_owned();
    let mut graph = Graph::default();
    let mut has_graph = false;
    let mut producer = [String::new(), String::new()];
    for field in Fields(bytes) {
        match field.ok_or_else(no_onnx)? {
            (1, Value::Number(version)) => graph.ir_version = version,
            (2, Value::Bytes(name)) => producer[0] = text(name),
            (3, Value::Bytes(version)) => producer[1] = text(version),
            (7, Value::Bytes(body)) => {
                has_graph = true;
                read_graph(body, &mut graph).ok_or_else(no_onnx)?;
            }
            (8, Value::Bytes(body)) => {
                let (mut domain, mut version) = (String::new(), 0);
                for field in Fields(body) {
                    match field.ok_or_else(no_onnx)? {
                        (1, Value::Bytes(name)) => domain = text(name),
                        (2, Value::Number(number)) => version = number,
                        _ => {}
                    }
                }
                graph.opsets.insert(domain, version);
            }
            (14, Value::Bytes(body)) => {
                let (key, value) = pair(body).ok_or_else(no_onnx)?;
                graph.metadata.insert(key, value);
            }
            _ => {}
        }
    }
    graph.producer = producer.join(" ").trim().to_owned();
    if !has_graph || graph.ir_version == 0 {
        return Err(no_onnx());
    }
    Ok(graph)
}

fn read_graph(body: &[u8], graph: &mut Graph) -> Option<()> {
    let mut weights = BTreeSet::new();
    for field in Fields(body) {
        match field? {
            (1, Value::Bytes(node)) => {
                graph.node_count += 1;
                for field in Fields(node) {
                    if let (4, Value::Bytes(operator)) = field? {
                        *graph.operators.entry(text(operator)).or_default() += 1;
                    }
                }
            }
            (5, Value::Bytes(tensor)) => read_weights(tensor, &mut weights, &mut graph.external_files)?,
            (11, Value::Bytes(value)) => graph.inputs.push(tensor_info(value)?),
            (12, Value::Bytes(value)) => graph.outputs.push(tensor_info(value)?),
            _ => {}
        }
    }
    graph.inputs.retain(|input| !weights.contains(&input.name));
    Some(())
}

fn read_weights(tensor: &[u8], names: &mut BTreeSet<String>, files: &mut BTreeSet<String>) -> Option<()> {
    let (mut is_external, mut location) = (false, None);
    for field in Fields(tensor) {
        match field? {
            (8, Value::Bytes(name)) => {
                names.insert(text(name));
            }
            (13, Value::Bytes(entry)) => {
                let (key, value) = pair(entry)?;
                if key == "location" {
                    location = Some(value);
                }
            }
            (14, Value::Number(place)) => is_external = place == 1,
            _ => {}
        }
    }
    if is_external {
        files.insert(location.unwrap_or_default());
    }
    Some(())
}

fn tensor_info(value: &[u8]) -> Option<TensorInfo> {
    let mut info = TensorInfo { name: String::new(), element: "unknown", sides: Vec::new(), has_shape: false };
    for field in Fields(value) {
        match field? {
            (1, Value::Bytes(name)) => info.name = text(name),
            (2, Value::Bytes(kind)) => {
                for field in Fields(kind) {
                    match field? {
                        (1, Value::Bytes(tensor)) => tensor_type(tensor, &mut info)?,
                        (_, Value::Bytes(_)) => info.element = "no tensor",
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(info)
}

fn tensor_type(tensor: &[u8], info: &mut TensorInfo) -> Option<()> {
    for field in Fields(tensor) {
        match field? {
            (1, Value::Number(number)) => info.element = element_name(number),
            (2, Value::Bytes(shape)) => {
                info.has_shape = true;
                for field in Fields(shape) {
                    let (1, Value::Bytes(side)) = field? else { continue };
                    let mut found = Side::Dynamic(String::new());
                    for field in Fields(side) {
                        match field? {
                            (1, Value::Number(number)) => found = Side::Fixed(number),
                            (2, Value::Bytes(name)) => found = Side::Dynamic(text(name)),
                            _ => {}
                        }
                    }
                    info.sides.push(found);
                }
            }
            _ => {}
        }
    }
    Some(())
}

/// A `StringStringEntryProto`.
fn pair(body: &[u8]) -> Option<(String, String)> {
    let mut pair = (String::new(), String::new());
    for field in Fields(body) {
        match field? {
            (1, Value::Bytes(key)) => pair.0 = text(key),
            (2, Value::Bytes(value)) => pair.1 = text(value),
            _ => {}
        }
    }
    Some(pair)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `TensorProto.DataType`.
fn element_name(number: u64) -> &'static str {
    match number {
        1 => "float32",
        2 => "uint8",
        3 => "int8",
        4 => "uint16",
        5 => "int16",
        6 => "int32",
        7 => "int64",
        8 => "string",
        9 => "bool",
        10 => "float16",
        11 => "float64",
        16 => "bfloat16",
        _ => "unknown",
    }
}

enum Value<'b> {
    Number(u64),
    Bytes(&'b [u8]),
    Fixed,
}

/// The fields of one protobuf message; `None` once where it is broken, then nothing.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take(1)? else { return None };
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'b>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let count = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(count)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Option<(u64, Value<'b>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn file(path: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    #[test]
    fn inputs_outputs_and_opset_of_real_files_are_read() {
        let graph = read(&file("models/tiny-yolox/model.onnx")).unwrap();
        assert_eq!((graph.ir_version, graph.opsets[""], graph.producer.as_str()), (8, 13, "loupe"));
        assert_eq!(graph.inputs[0].to_string(), "images float32[1, 3, 416, 416]");
        assert_eq!(graph.outputs[0].to_string(), "output float32[1, 3549, 7]");
        assert!(graph.operators["AveragePool"] == 1 && graph.node_count > 10 && graph.external_files.is_empty());
        let graph = read(&file("models/mobilenetv2/model.onnx")).unwrap();
        assert_eq!(graph.inputs[0].to_string(), "images float32[batch, 3, height, width]");
        assert_eq!(graph.inputs.len(), 1, "weights are no inputs");
    }

    #[test]
    fn empty_foreign_and_cut_files_are_said_so() {
        assert!(read(b"").unwrap_err().contains("0 bytes"));
        assert!(read(b"version https://git-lfs.github.com/spec/v1").unwrap_err().contains("git lfs pull"));
        assert!(read(b"no model").unwrap_err().contains("no ONNX"));
        assert!(read(&[0xFF; 40]).unwrap_err().contains("no ONNX"));
        let whole = file("models/tiny-yolox/model.onnx");
        assert!(read(&whole[..whole.len() - 1]).is_err());
        assert!(read(&whole[..whole.len() / 2]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in 0_usize..1286, byte in any::<u8>(), junk in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = file("models/tiny-yolox/model.onnx");
            bytes[at] = byte;
            drop(read(&bytes));
            drop(read(&junk));
        }
    }
}
