// A file and not a part of the page, so that a policy may forbid scripts in pages.
SwaggerUIBundle({
  url: "openapi.json", // relative, like all of the page: it may be served behind a prefix
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  validatorUrl: null, // or the document's address is sent to a service on the internet
});
