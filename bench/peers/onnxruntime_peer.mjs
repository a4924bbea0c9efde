// ONNX Runtime, in the protocol of peer.hpp: one model per case whose nodes are a fused attention
// operator. Of the operators that can compute a case, the fastest counts, and a note names it.
//
// A short case's model applies the operator several times, each result being the next one's query,
// and the time is divided by their number: a call from JavaScript costs some 20 µs, which are not
// ONNX Runtime's.
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {resolve} from 'node:path';

function load(name) {
  const directory = process.env.HEED_PEERS_NODE_MODULES;
  const require = createRequire(import.meta.url);
  try {
    return require(directory ? resolve(directory, name) : name);
  } catch (error) {
    console.error(`onnxruntime_peer: ${error.message.split('\n')[0]}`);
    process.exit(3);
  }
}
const ort = load('onnxruntime-node');

const options = {};
for (let i = 2; i < process.argv.length; i += 2) options[process.argv[i]] = process.argv[i + 1];
const shapes = options['--shapes'];
const threads = Number(options['--threads'] ?? 1), round = Number(options['--round'] ?? 1);
if (!shapes || !(threads > 0) || !(round > 0)) {
  console.error('usage: onnxruntime_peer.mjs --shapes FILE [--threads T] [--round N]');
  process.exit(2);
}

// ------------------------------------------------------------------- ONNX models, as protobuf bytes

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push(value % 128 + 128);
  return [...bytes, value];
}
const integer = (field, value) => [...varint(field * 8), ...varint(value)];
const bytes = (field, content) => [...varint(field * 8 + 2), ...varint(content.length), ...content];
const text = (field, value) => bytes(field, Buffer.from(value));
const float = (field, value) =>
    [...varint(field * 8 + 5), ...new Uint8Array(new Float32Array([value]).buffer)];

// Numbers in attributes are integers; all of ours are.
const attribute = ([name, value]) => [...text(1, name), ...integer(3, value), ...integer(20, 2)];
const node = ({op, domain = '', inputs, outputs, attributes}) =>
    [...inputs.flatMap((name) => text(1, name)), ...outputs.flatMap((name) => text(2, name)),
     ...text(4, op), ...Object.entries(attributes).flatMap((a) => bytes(5, attribute(a))),
     ...text(7, domain)];
function valueInfo({name, type, dims}) {
  const shape = dims.flatMap((size) => bytes(1, integer(1, size)));
  return [...text(1, name), ...bytes(2, bytes(1, [...integer(1, type), ...bytes(2, shape)]))];
}
function model({nodes, inputs, outputs}) {
  const graph = [...nodes.flatMap((n) => bytes(1, node(n))), ...text(2, 'attention'),
                 ...inputs.flatMap((v) => bytes(11, valueInfo(v))),
                 ...outputs.flatMap((v) => bytes(12, valueInfo(v)))];
  const opset = (domain, version) => bytes(8, [...text(1, domain), ...integer(2, version)]);
  return Uint8Array.from([...integer(1, 10), ...bytes(7, graph), ...opset('', 23),
                          ...opset('com.microsoft', 1)]);
}
const types = {float32: 1, int32: 6};

// ---------------------------------------------------------------------------------------- operands

function number(tensor, i) {
  let x = (i + tensor * 2 ** 24) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  x ^= x >>> 16;
  return (x >>> 8) / 2 ** 23 - 1;
}

// Calls visit(i, place) for every element i of a contiguous [batch, heads, rows, depth], with its
// place in `layout`: as it is, or [batch, rows, heads·depth], or with the `group` query heads of a
// KV head as rows, [batch, group, KV heads·depth].
function forEachElement([batch, heads, rows, depth], layout, group, visit) {
  let i = 0;
  for (let b = 0; b < batch; ++b)
    for (let h = 0; h < heads; ++h)
      for (let r = 0; r < rows; ++r) {
        let row = (b * heads + h) * rows + r;
        if (layout === 'rows first') row = (b * rows + r) * heads + h;
        if (layout === 'group first')  // of one row
          row = (b * group + h % group) * (heads / group) + Math.floor(h / group);
        for (let d = 0; d < depth; ++d) visit(i++, row * depth + d);
      }
}

function tensor(id, width, extents, layout) {
  const [batch, heads, rows, depth] = extents;
  const data = new Float32Array(batch * heads * rows * depth);
  forEachElement(extents, layout, 1, (i, place) => { data[place] = width * number(id, i); });
  const dims = layout === 'heads first' ? extents : [batch, rows, heads * depth];
  return new ort.Tensor('float32', data, dims);
}

// --------------------------------------------------------------------------------------- operators

// What can compute a case: each with the layouts of its operands, and its node.
function operatorsFor(c) {
  const group = c.queryHeads / c.kvHeads, causal = c.causal ? 1 : 0;
  const list = [{
    name: 'Attention', queryLayout: 'heads first', keyLayout: 'heads first',
    node: {op: 'Attention', inputs: ['q', 'k', 'v'], attributes: {is_causal: causal}},
  }];
  const multiHead = {
    op: 'MultiHeadAttention', domain: 'com.microsoft', inputs: ['q', 'k', 'v'],
    attributes: {num_heads: c.kvHeads, unidirectional: causal},
  };
  if (group === 1 || c.queries === 1) {
    const queryLayout = group === 1 ? 'rows first' : 'group first';
    list.push({name: 'MultiHeadAttention', queryLayout, keyLayout: 'rows first', node: multiHead});
    // Cross attention takes keys that a cache holds in this layout.
    if (!c.causal)
      list.push({name: 'MultiHeadAttention, K and V as cached', queryLayout,
                 keyLayout: 'heads first', node: multiHead});
  }
  // Always causal. Decoding would append the new key to a copy of the old ones: JavaScript cannot
  // say that both are one buffer.
  if (c.causal && c.queries === c.keys)
    list.push({
      name: 'GroupQueryAttention', queryLayout: 'rows first', keyLayout: 'rows first',
      node: {
        op: 'GroupQueryAttention', domain: 'com.microsoft',
        inputs: ['q', 'k', 'v', '', '', 'last_key', 'key_count'],
        attributes: {num_heads: c.queryHeads, kv_num_heads: c.kvHeads},
      },
      feeds: {
        last_key: new ort.Tensor('int32', new Int32Array(c.batch).fill(c.keys - 1), [c.batch]),
        key_count: new ort.Tensor('int32', Int32Array.of(c.keys), [1]),
      },
    });
  return list;
}

async function prepare(c, operator, repeats) {
  const queryExtents = [c.batch, c.queryHeads, c.queries, c.depth];
  const keyExtents = [c.batch, c.kvHeads, c.keys, c.depth];
  const group = operator.queryLayout === 'group first' ? c.queryHeads / c.kvHeads : 1;
  const query = new Float32Array(c.batch * c.queryHeads * c.queries * c.depth);
  forEachElement(queryExtents, operator.queryLayout, group,
                 (i, place) => { query[place] = 4 * number(1, i); });
  const queryDims = operator.queryLayout === 'heads first' ? queryExtents
      : [c.batch, c.queries * group, c.queryHeads / group * c.depth];
  const feeds = {
    q: new ort.Tensor('float32', query, queryDims),
    k: tensor(2, 1, keyExtents, operator.keyLayout),
    v: tensor(3, 1, keyExtents, operator.keyLayout),
    ...operator.feeds,
  };

  const nodes = [];
  for (let n = 0; n < repeats; ++n) {
    const inputs = operator.node.inputs.map((name) => name === 'q' && n > 0 ? `out${n - 1}` : name);
    const extra = operator.node.op === 'GroupQueryAttention' ? [`keys${n}`, `values${n}`] : [];
    nodes.push({...operator.node, inputs, outputs: [`out${n}`, ...extra]});
  }
  const names = [...new Set(['out0', `out${repeats - 1}`])];
  const session = await ort.InferenceSession.create(model({
    nodes,
    inputs: Object.entries(feeds).map(
        ([name, t]) => ({name, type: types[t.type], dims: t.dims})),
    outputs: names.map((name) => ({name, type: types.float32, dims: queryDims})),
  }), {intraOpNumThreads: threads, interOpNumThreads: 1, logSeverityLevel: 3});
  // Results go to the same memory in every call, so that nothing is left to the garbage collector.
  const results = Object.fromEntries(
      names.map((name) => [name, new ort.Tensor('float32', query.slice(), queryDims)]));
  return {
    run: () => session.run(feeds, results),
    release: () => session.release(),
    checksum() {
      let sum = 0;
      forEachElement(queryExtents, operator.queryLayout, group, (i, place) => {
        sum += Math.abs(results.out0.data[place]) * (1 + number(4, i));
      });
      return sum;
    },
  };
}

async function bestSeconds(run) {
  await run();
  let best = Infinity, elapsed = 0;
  for (let calls = 0; calls < 3 || elapsed < 0.15; ++calls) {
    const start = performance.now();
    await run();
    const seconds = (performance.now() - start) / 1e3;
    best = Math.min(best, seconds);
    elapsed += seconds;
  }
  return best;
}

async function measure(c) {
  if (c.type !== 'float')
    return console.log(`# missing ${c.name} no attention operator for ${c.type} on CPUs`);
  const operations = 4 * c.batch * c.queryHeads * c.queries * c.keys * c.depth;
  const repeats = Math.min(16, Math.max(1, Math.round(2e8 / operations)));
  let best = {seconds: Infinity}, reason;
  for (const operator of operatorsFor(c)) {
    try {
      const candidate = await prepare(c, operator, repeats);
      const seconds = await bestSeconds(candidate.run) / repeats;
      if (round === 1) console.error(`${c.name} ${operator.name}: ${(seconds * 1e3).toFixed(3)} ms`);
      if (seconds < best.seconds)
        best = {seconds, name: operator.name, checksum: round === 1 && candidate.checksum()};
      await candidate.release();
    } catch (error) {
      reason = `${operator.name}: ${error.message.split('\n')[0]}`;
      console.error(`${c.name} ${reason}`);
    }
  }
  if (!best.name) return console.log(`# missing ${c.name} ${reason}`);
  if (round === 1) console.log(`# check ${c.name} ${best.checksum}`);
  console.log(`# note ${c.name} ${best.name}`);
  console.log(`${c.name} ${best.seconds}`);
}

console.log(`# library onnxruntime-node ${ort.env.versions.node}`);
for (const line of readFileSync(shapes, 'utf8').split('\n')) {
  if (!line || line.startsWith('#')) continue;
  const [name, type, ...rest] = line.split(/\s+/);
  const [batch, queryHeads, kvHeads, queries, keys, depth] = rest.map(Number);
  await measure({name, type, batch, queryHeads, kvHeads, queries, keys, depth,
                 causal: rest[6] === 'causal'});
}
