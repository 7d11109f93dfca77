/** The question that the page asks, for a terminal and for Python. */

/** A key is a secret: snippets name a variable that holds it. */
const KEY = "WORLD_MODEL_KEY";

/**
 * @param {string} base URL of the service, with a slash at its end
 * @param {object} body of a safety check: numbers and plain names only
 * @param {boolean} needsKey
 * @param {number} timeout_s deadline of the question; 0: the service's own
 */
export function curlOf(base, body, needsKey, timeout_s) {
  const key = needsKey ? ` -H "Authorization: Bearer $${KEY}"` : "";
  const deadline = timeout_s ? ` -H "X-Request-Timeout-Seconds: ${timeout_s}"` : "";
  return `curl -s ${quoted(`${base}safety-check`)}${key}${deadline} -d ${quoted(JSON.stringify(body))}`;
}

/**
 * @param {string} base
 * @param {object} body
 * @param {boolean} needsKey
 * @param {number} timeout_s
 */
export function pythonOf(base, body, needsKey, timeout_s) {
  const key = needsKey ? `, api_key=os.environ["${KEY}"]` : "";
  const fields = Object.entries(timeout_s ? { ...body, timeout_s } : body).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from world_model_client import Client",
    "",
    `with Client(${JSON.stringify(base.replace(/\/$/, ""))}${key}) as client:`,
    "    answer = client.safety_check(",
    ...fields.map((line) => `    ${line}`),
    "    )",
    "    print(answer)",
    "",
  ].join("\n");
}

/** @param {string} text for a shell */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
