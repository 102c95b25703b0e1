// Opens, times and asks ONNX models with onnxruntime-web: the same code in Node and in a page.

// A sample must last so many ticks of the clock; a faster model is run several times for it.
const TICKS = 50;
// Types of tensors that travel as JSON.
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};

export class Engine {
  // ort: the module; clockMs: resolution of performance.now() in milliseconds.
  constructor(ort, clockMs) {
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = 'error';
    this.ort = ort;
    this.shortestMs = TICKS * clockMs;
    this.models = [];
  }

  // bytes: a model file. Sessions are numbered in the order of loading.
  async load(bytes) {
    const session = await this.ort.InferenceSession.create(bytes, { executionProviders: ['wasm'] });
    const feeds = {};
    for (const input of session.inputMetadata) feeds[input.name] = this.randomInput(input);
    this.models.push({ session, feeds });
    return { loaded: this.models.length };
  }

  // The answer to one question; read: a model's path -> its bytes.
  async answer(question, read) {
    if ('load' in question) return this.load(await read(question.load));
    if ('answer' in question) return this.answers(this.models[question.answer], question.feeds);
    return this.time(question.time);
  }

  // feeds: name -> tensor as JSON, see runtime.py's packed; the outputs likewise, in order.
  async answers({ session }, feeds) {
    const tensors = {};
    for (const [name, { type, shape, data }] of Object.entries(feeds)) {
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      tensors[name] = new this.ort.Tensor(type, new ARRAYS[type](bytes.buffer), shape);
    }
    const found = await session.run(tensors);
    const outputs = {};
    for (const [i, name] of session.outputNames.entries()) {
      const { type, dims, data } = found[name];
      if (!(type in ARRAYS)) continue;
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      let letters = '';
      for (const byte of bytes) letters += String.fromCharCode(byte);
      outputs[i] = { type, shape: [...dims], data: btoa(letters) };
    }
    return { outputs };
  }

  // touches: [model, runs] pairs -> milliseconds of each run; one more run first is dropped.
  async time(touches) {
    const ms = [];
    for (const [index, runs] of touches) ms.push(await this.touch(this.models[index], runs));
    return { ms };
  }

  async touch({ session, feeds }, runs) {
    const dropped = await sample(session, feeds, 1);
    const repeats = Math.max(1, Math.ceil(this.shortestMs / Math.max(dropped, 1e-3)));
    const times = [];
    for (let i = 0; i < runs; i++) times.push(await sample(session, feeds, repeats));
    return times;
  }

  randomInput({ name, type, shape }) {
    if (!shape.every(Number.isInteger)) {
      const sides = shape.map((side) => (Number.isInteger(side) ? side : `'${side}'`));
      throw new Error(`input '${name}' has the dynamic shape [${sides.join(', ')}]`);
    }
    const size = shape.reduce((product, side) => product * side, 1);
    const kinds = { float32: Float32Array, float64: Float64Array };
    if (type in kinds) {
      return new this.ort.Tensor(type, kinds[type].from({ length: size }, normal), shape);
    }
    if (type === 'uint8') {
      const pixels = Uint8Array.from({ length: size }, () => Math.floor(256 * Math.random()));
      return new this.ort.Tensor(type, pixels, shape);
    }
    if (type in ARRAYS) {  // 0 or 1, which any table of a model that looks them up has
      const number = type.endsWith('64') ? BigInt : Number;
      const ids = ARRAYS[type].from({ length: size }, () => number(Math.floor(2 * Math.random())));
      return new this.ort.Tensor(type, ids, shape);
    }
    throw new Error(`input '${name}' has the unsupported type ${type}`);
  }
}

// Milliseconds of one run, as the mean of `repeats` runs in a row.
async function sample(session, feeds, repeats) {
  const start = performance.now();
  for (let i = 0; i < repeats; i++) await session.run(feeds);
  return (performance.now() - start) / repeats;
}

function normal() {
  const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
  return radius * Math.cos(2 * Math.PI * Math.random());
}

// One line for people out of whatever was thrown.
export function describe(error) {
  return String((error && error.message) || error).split(/\s+/).join(' ');
}
