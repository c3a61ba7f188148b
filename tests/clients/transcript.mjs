// A transcript on standard output: one line a result.
export const say = (label, result) =>
  console.log(`${label}: ${JSON.stringify(result, (_, v) => (typeof v === "bigint" ? `${v}n` : v))}`);

// What a promise gives, or how it fails.
export const attempt = async (label, promise) => {
  try {
    say(label, await promise);
  } catch (error) {
    say(label, `${error.constructor.name} ${error.message}`);
  }
};

// Waits for what comes by itself.
export const until = async (label, condition) => {
  const deadline = Date.now() + 10_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`${label}: not within 10 s`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  say(label, "came");
};

const words = process.argv.slice(4);

// Whether to take the library's client for clusters.
export const clustered = words.includes("cluster");

// Whether the deployment has it: databases other than 0, users made with ACL, SCAN of all, MONITOR, client-side caching, a count of
// all who receive a message.
export const has = (what) => !words.includes(`no-${what}`);
