/** The question that the page asks, for a terminal and for Python. */

/** A key is a secret: snippets name a variable that holds it. */
const KEY = "WORLD_MODEL_KEY";

/**
 * @param {string} base URL of the service, with a slash at its end
 * @param {object} body of a safety check: numbers and plain names only
 * @param {boolean} needsKey
 */
export function curlOf(base, body, needsKey) {
  const key = needsKey ? ` -H "Authorization: Bearer $${KEY}"` : "";
  return `curl -s ${quoted(`${base}safety-check`)}${key} -d ${quoted(JSON.stringify(body))}`;
}

/**
 * @param {string} base
 * @param {object} body
 * @param {boolean} needsKey
 */
export function pythonOf(base, body, needsKey) {
  const key = needsKey ? `, api_key=os.environ["${KEY}"]` : "";
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
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
